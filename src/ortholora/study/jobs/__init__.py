"""Several runs at once, in processes of their own."""
