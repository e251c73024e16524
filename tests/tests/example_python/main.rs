//! `examples/python` against real daemons on hosts in network namespaces, from the client's host; and what
//! `docs/api.md` shows of it and of `vipctl`. Needs root and Python with venv and pip.

mod calls;
mod document;
mod failover;
mod python;
mod reflection;
