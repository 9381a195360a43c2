"""Sources of image gradients: autograd on the live model or on a copy of it, or a program made from the model."""
