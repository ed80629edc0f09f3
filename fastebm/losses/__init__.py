"""What is minimised: contrastive divergence and its kin, maximum likelihood, wake-sleep."""
