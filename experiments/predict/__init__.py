"""A run's trained model on images of one's own: masks, uncertainty, and what to look at first."""
