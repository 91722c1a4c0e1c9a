//! Layers of plain directories, and what comes out.
