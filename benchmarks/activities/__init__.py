"""What worker processes do: each module has a class that gets ready when it is made, and runs rounds."""
