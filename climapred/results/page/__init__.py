"""What the page of a run is made of: its frame, script and style, and the numbers that they show."""
