"""Code that losses share: the statistics that they are made of, and the checks of their options."""
