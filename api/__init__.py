"""HTTP over `auditor`: routes, authentication, problem documents, pages. Nothing is built here yet."""
