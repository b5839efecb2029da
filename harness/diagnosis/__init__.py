"""`twinloss diagnose`: find out what is wrong with a user's own batch."""
