"""Is the number of tokens billed the number that the text took? Audits that need no commitment."""
