//! Finding what somebody meant.

/// The candidate that is nearest to a misspelt word, when one is near enough to be worth naming.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_another_word_does_not() {
        let words = ["claude", "codex", "shell"];
        assert_eq!(nearest("cluade", words), Some("claude"));
        assert_eq!(nearest("SHEL", words), Some("shell"));
        assert_eq!(nearest("kubernetes", words), None);
        assert_eq!(nearest("x", []), None);
    }
}
