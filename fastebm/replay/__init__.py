"""The replay buffer, and the augmentation of what it hands out."""
