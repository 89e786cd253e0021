"""The arena: blinded battles, durable votes, honest ratings."""
