"""What samples and generators are judged by."""
