"""Choose settings, above all the learning rate, for every method alike before they are compared."""
