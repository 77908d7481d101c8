"""What Python callers use, in scripts and in notebooks: train a recipe, open and list runs."""
