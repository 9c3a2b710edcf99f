"""The service behind the HTTP API and the workers: tenants, the queue, audits and what they leave behind.

Functions take an open transaction (`Store.transaction`), so that what belongs together is committed together.
Every query about a tenant's things names the tenant.
"""
