"""The images as a stack on a real container engine."""
