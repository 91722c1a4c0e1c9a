//! The kernel's overlayfs as the backend.
