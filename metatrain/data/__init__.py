"""Data: stores of labelled images, columns of numbers, and what reads them."""
