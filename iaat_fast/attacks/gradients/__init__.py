"""Where the gradients of images come from: the live model by autograd, a copy of it, or a program made of it."""
