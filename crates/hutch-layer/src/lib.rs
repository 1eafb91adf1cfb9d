//! Layers of templates: a tar becomes a read-only disk image, and an image a tar again.
//!
//! ```text
//!   tar ──tar::Reader──▶ Entry + content ──Tree──▶ erofs::Writer ──▶ image of one or several layers, one on the other
//!   image ──erofs::Image──▶ Entry + content ──tar::Writer──▶ tar
//! ```
//!
//! Nothing is ever unpacked: no path of an archive becomes a path of the host, and owners, devices and extended
//! attributes need no privilege. A layer comes from anywhere, a sandbox included, so all of it is hostile: what is
//! read is bounded by [`Limits`], and each refusal says which entry and why.

mod entry;
pub mod erofs;
pub mod tar;
mod tree;

pub use entry::{Entry, EntryPath, Extent, Kind, LayerError, Limits, Metadata, Refusal};
pub use tree::{Content, Tree};
