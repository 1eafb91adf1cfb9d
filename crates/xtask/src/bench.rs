//! `make bench`.

/// Measures.
pub(crate) fn bench(_quick: bool) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
