"""What users import: a fleet over HTTP, sync and async. Stage 1; imports only models and errors."""
