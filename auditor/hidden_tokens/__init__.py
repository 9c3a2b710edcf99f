"""Hidden tokens: committed to, challenged, opened, and judged by their content."""
