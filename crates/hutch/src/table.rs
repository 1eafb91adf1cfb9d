//! Tables for people.

use crate::printer::escaped_line;

/// Space between columns.
const GAP: usize = 3;
/// The same in tables whose form others have documented.
const NARROW_GAP: usize = 2;

/// Lays rows out under their headings; cells longer than `limit` are cut.
pub(crate) fn render<const COLUMNS: usize>(
    headings: &[&str; COLUMNS],
    rows: impl IntoIterator<Item = Vec<String>>,
    limit: usize,
) -> String {
    lay_out::<COLUMNS>(under(headings, rows), limit, GAP)
}

/// Lays rows out under their headings, closer together and with whole cells.
pub(crate) fn narrow<const COLUMNS: usize>(
    headings: &[&str; COLUMNS],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    lay_out::<COLUMNS>(under(headings, rows), usize::MAX, NARROW_GAP)
}

/// Lays rows out without headings.
pub(crate) fn rows<const COLUMNS: usize>(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    lay_out::<COLUMNS>(rows, usize::MAX, NARROW_GAP)
}

fn under<const COLUMNS: usize>(
    headings: &[&str; COLUMNS],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> impl Iterator<Item = Vec<String>> {
    std::iter::once(headings.iter().map(|&heading| heading.to_owned()).collect()).chain(rows)
}

fn lay_out<const COLUMNS: usize>(
    rows: impl IntoIterator<Item = Vec<String>>,
    limit: usize,
    gap: usize,
) -> String {
    let lines: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| row.iter().map(|cell| cut(&escaped_line(cell), limit)).collect())
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(widths) {
            row.push_str(cell);
            row.extend(std::iter::repeat_n(' ', width + gap - cell.chars().count()));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// The start of a path says less than its end, but a cell that is cut in its middle cannot be copied by mistake.
fn cut(cell: &str, limit: usize) -> String {
    let length = cell.chars().count();
    if length <= limit {
        return cell.to_owned();
    }
    let keep = limit.saturating_sub(1);
    let (head, tail) = (keep / 2, keep - keep / 2);
    cell.chars().take(head).chain(['…']).chain(cell.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            vec![vec!["a".to_owned(), "1".to_owned()], vec!["lönger".to_owned(), String::new()]];
        assert_eq!(render(&["X", "NUMBER"], rows, 10), "X        NUMBER\na        1\nlönger\n");
    }

    #[test]
    fn long_cells_are_cut_in_the_middle() {
        assert_eq!(cut("abcdefghij", 5), "ab…ij");
        assert_eq!(cut("abcdefghij", 10), "abcdefghij");
        assert_eq!(cut("abc", usize::MAX), "abc");
    }
}
