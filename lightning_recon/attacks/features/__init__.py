"""What the gradients of linear layers tell of every sample's features, and images from these."""
