"""The functions for scripts and notebooks: train a recipe, open and list runs."""
