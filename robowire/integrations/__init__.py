"""Our clients under the interfaces of other libraries."""
