"""`twinloss diagnose`: what is wrong with a batch of one's own."""
