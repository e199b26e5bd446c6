"""Other ways to the same result. Each is a function that gives a job, or raises Missing with the reason."""
