"""The papers: what stands behind each page of results, and what the figures say of its claims."""
