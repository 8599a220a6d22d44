"""Features of images: extracted, kept, named."""
