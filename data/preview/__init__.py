"""The preview: a contact sheet of a dataset, masks drawn over images."""
