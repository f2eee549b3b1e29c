"""Many pictures: which become which files, what is done already, and how they are worked through."""
