//! Is a history of answers linearizable? Wing and Gong's search over one key that is read and conditionally written, with
//! the states that were visited remembered (Lowe). An operation whose outcome is unknown may have happened or not.

use cluster::{GroupRecord, OwnershipAnswer, OwnershipOp};
use std::collections::HashSet;

/// One operation: what was asked, when, and what was answered.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked. Its operations do not overlap.
    pub client: u8,
    pub asked: u64,
    pub answered: u64,
    pub op: OwnershipOp,
    pub answer: OwnershipAnswer,
}

/// Lets a write of unknown outcome happen until its client has its next known answer: the engine promises that it
/// cannot happen after that.
pub fn bound_unknown(history: &mut [Operation]) {
    for i in 0..history.len() {
        if !matches!(history[i].answer, OwnershipAnswer::Unknown(_)) {
            continue;
        }
        history[i].answered = history
            .iter()
            .filter(|o| o.client == history[i].client && o.asked >= history[i].answered)
            .filter(|o| !matches!(o.answer, OwnershipAnswer::Unknown(_)))
            .map(|o| o.answered)
            .min()
            .unwrap_or(u64::MAX);
    }
}

/// Whether some order of the operations, each within its time and those of one client as it asked them, explains all
/// answers. The key is absent at first.
///
/// The order of a client's operations says something only where one is unknown: it happens before the next one of that
/// client, or never.
pub fn linearizable(history: &[Operation]) -> bool {
    let mut operations: Vec<&Operation> = history
        .iter()
        // Nobody knows what an unanswered read saw.
        .filter(|o| {
            !matches!(
                (&o.op, &o.answer),
                (OwnershipOp::Read, OwnershipAnswer::Unknown(_))
            )
        })
        .collect();
    operations.sort_by_key(|o| o.asked);
    let mut visited = HashSet::new();
    let mut open = vec![(vec![false; operations.len()], None::<GroupRecord>)];
    while let Some((done, state)) = open.pop() {
        if !visited.insert((done.clone(), state.clone())) {
            continue;
        }
        let left = || operations.iter().enumerate().filter(|(i, _)| !done[*i]);
        let Some(first_end) = left().map(|(_, o)| o.answered).min() else {
            return true;
        };
        let in_turn = |(i, o): &(usize, &&Operation)| left().all(|(j, p)| j >= *i || p.client != o.client);
        for (i, operation) in left().filter(|(_, o)| o.asked <= first_end).filter(in_turn) {
            for next in results(operation, &state) {
                let mut done = done.clone();
                done[i] = true;
                open.push((done, next));
            }
        }
    }
    false
}

/// The states that an operation can leave behind if it happens in this one. None: it cannot happen here with its answer.
fn results(operation: &Operation, state: &Option<GroupRecord>) -> Vec<Option<GroupRecord>> {
    match (&operation.op, &operation.answer) {
        (OwnershipOp::Read, OwnershipAnswer::Is(seen)) if seen == state => vec![state.clone()],
        (OwnershipOp::Write { expected, new }, OwnershipAnswer::Written) if expected == state => {
            vec![Some(new.clone())]
        }
        (OwnershipOp::Write { expected, .. }, OwnershipAnswer::Differs(seen))
            if seen == state && expected != state =>
        {
            vec![state.clone()]
        }
        (OwnershipOp::Write { expected, new }, OwnershipAnswer::Unknown(_)) if expected == state => {
            vec![Some(new.clone()), state.clone()]
        }
        (OwnershipOp::Write { .. }, OwnershipAnswer::Unknown(_)) => vec![state.clone()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{record, write};
    use super::*;

    fn operation(
        client: u8,
        asked: u64,
        answered: u64,
        op: OwnershipOp,
        answer: OwnershipAnswer,
    ) -> Operation {
        Operation {
            client,
            asked,
            answered,
            op,
            answer,
        }
    }

    #[test]
    fn the_checker_tells_right_histories_from_wrong_ones() {
        use OwnershipAnswer::{Differs, Is, Unknown, Written};
        let (a, b, c) = (record(1, 1, 1), record(2, 1, 2), record(2, 2, 3));
        let begin = operation(1, 0, 1, write(None, &a), Written);
        let lost = || Unknown("lost".into());
        let read = || OwnershipOp::Read;
        let cases: Vec<(&str, bool, Vec<Operation>)> = vec![
            ("nothing", true, vec![]),
            (
                "a write is read",
                true,
                vec![operation(1, 2, 3, read(), Is(Some(a.clone())))],
            ),
            (
                "a write is not read",
                false,
                vec![operation(1, 2, 3, read(), Is(None))],
            ),
            (
                "one winner",
                true,
                vec![
                    operation(1, 2, 9, write(Some(&a), &b), Written),
                    operation(2, 2, 9, write(Some(&a), &c), Differs(Some(b.clone()))),
                ],
            ),
            (
                "two winners",
                false,
                vec![
                    operation(1, 2, 9, write(Some(&a), &b), Written),
                    operation(2, 2, 9, write(Some(&a), &c), Written),
                ],
            ),
            (
                "two winners, one of them unknown",
                true,
                vec![
                    operation(1, 2, 9, write(Some(&a), &b), Written),
                    operation(2, 2, 9, write(Some(&a), &c), lost()),
                ],
            ),
            (
                "an unknown write that happened",
                true,
                vec![
                    operation(1, 2, 3, write(Some(&a), &b), lost()),
                    operation(1, 4, 5, read(), Is(Some(b.clone()))),
                    operation(2, 6, 7, read(), Is(Some(b.clone()))),
                ],
            ),
            (
                "an unknown write that did not happen, and then did",
                false,
                vec![
                    operation(1, 2, 3, write(Some(&a), &b), lost()),
                    operation(1, 4, 5, read(), Is(Some(a.clone()))),
                    operation(2, 6, 7, read(), Is(Some(b.clone()))),
                ],
            ),
            (
                "refused for what was not there",
                false,
                vec![operation(1, 2, 3, write(Some(&b), &c), Differs(Some(b.clone())))],
            ),
            (
                "a stale read",
                false,
                vec![
                    operation(1, 2, 3, write(Some(&a), &b), Written),
                    operation(2, 4, 5, read(), Is(Some(a.clone()))),
                ],
            ),
            (
                "a read beside the write may see either",
                true,
                vec![
                    operation(1, 2, 9, write(Some(&a), &b), Written),
                    operation(2, 3, 4, read(), Is(Some(b.clone()))),
                    operation(3, 5, 6, read(), Is(Some(b.clone()))),
                ],
            ),
            (
                "but not back",
                false,
                vec![
                    operation(1, 2, 9, write(Some(&a), &b), Written),
                    operation(2, 3, 4, read(), Is(Some(b.clone()))),
                    operation(3, 5, 6, read(), Is(Some(a.clone()))),
                ],
            ),
        ];
        for (name, right, rest) in cases {
            let mut history: Vec<Operation> = std::iter::once(begin.clone()).chain(rest).collect();
            bound_unknown(&mut history);
            assert_eq!(linearizable(&history), right, "{name}");
        }
    }
}
