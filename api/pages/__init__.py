"""Pages for people: rendered here, readable without script; script only makes them livelier."""
