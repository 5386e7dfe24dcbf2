"""Forms of data that are no arrays yet: folders of images, tables with words in them, folders of Hugging Face."""
