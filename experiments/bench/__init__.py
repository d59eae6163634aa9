"""`bench`: errors, time and memory beside other libraries."""
