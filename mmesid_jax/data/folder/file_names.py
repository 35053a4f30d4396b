"""The names of the plain files in a data set's folder."""

SEQUENCES, ITEMS, USERS, TIMES = "sequences.txt", "items.jsonl", "users.jsonl", "times.npy"
