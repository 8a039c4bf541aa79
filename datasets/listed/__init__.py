"""Data sets whose images are files on disk: the published lists, and a user's own folders and lists."""
