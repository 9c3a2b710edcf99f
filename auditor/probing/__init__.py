"""Questioning a live endpoint with seeded requests that look like ordinary traffic: `audit probe`."""
