//! Evaluates the DWARF expressions in unwind rules, on gimli's evaluator, without allocating.
//!
//! What is not in a stopped thread's registers and memory (thread-local storage, debug information)
//! makes an expression fail; so does one that runs too long.

use gimli::{
    Encoding, Evaluation, EvaluationResult, EvaluationStorage, Format, LittleEndian, Location,
    Piece, Value,
};

use super::cfi::Slice;

/// How an expression may be encoded in CFI.
pub(super) const ENCODING: Encoding = Encoding {
    format: Format::Dwarf32,
    version: 4,
    address_size: 8,
};

/// Operations after which an evaluation is given up.
const MAX_OPERATIONS: u32 = 200;

/// Room for an evaluation, on the stack.
struct Inline;

impl<'a> EvaluationStorage<Slice<'a>> for Inline {
    type Stack = [Value; 32];
    type ExpressionStack = [(Slice<'a>, Slice<'a>); 1];
    type Result = [Piece<Slice<'a>>; 1];
}

/// The value of the expression `code`. `initial` is on the stack when it starts (the CFA, for rules
/// of registers); `register` and `memory` fetch what it asks for, memory as the eight bytes at an
/// address.
pub(super) fn evaluate(
    code: &[u8],
    initial: Option<u64>,
    register: impl Fn(u16) -> Option<u64>,
    mut memory: impl FnMut(u64) -> Option<u64>,
) -> Option<u64> {
    let code = Slice::new(code, LittleEndian);
    let mut evaluation = Evaluation::<_, Inline>::new_in(code, ENCODING);
    evaluation.set_max_iterations(MAX_OPERATIONS);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut state = evaluation.evaluate().ok()?;
    // Each resumption consumes at least one of the counted operations.
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register: r, .. } => {
                let value = Value::Generic(register(r.0)?);
                evaluation.resume_with_register(value).ok()?
            }
            EvaluationResult::RequiresMemory {
                address,
                size,
                space: None,
                ..
            } => {
                let word = memory(address)?;
                let word = match size {
                    1..=7 => word & ((1 << (8 * u32::from(size))) - 1),
                    8 => word,
                    _ => return None,
                };
                evaluation.resume_with_memory(Value::Generic(word)).ok()?
            }
            EvaluationResult::RequiresCallFrameCfa => {
                evaluation.resume_with_call_frame_cfa(initial?).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [
            Piece {
                size_in_bits: None,
                location: Location::Address { address },
                ..
            },
        ] => Some(*address),
        [
            Piece {
                size_in_bits: None,
                location: Location::Value { value },
                ..
            },
        ] => value.to_u64(u64::MAX).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(code: &[u8], initial: Option<u64>) -> Option<u64> {
        let register = |r| Some(u64::from(r) * 0x100);
        evaluate(code, initial, register, |a| {
            Some(a.wrapping_add(0x1122_3344_0000_0000))
        })
    }

    #[test]
    fn registers_memory_and_arithmetic() {
        // DW_OP_breg7 8; the expression of every PLT entry.
        assert_eq!(eval(&[0x77, 8], None), Some(0x708));
        let plt = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(eval(&plt, None), Some(0x708));
        // DW_OP_breg6 -8; DW_OP_deref.
        assert_eq!(eval(&[0x76, 0x78, 0x06], None), Some(0x1122_3344_0000_05f8));
        // DW_OP_breg6 0; DW_OP_deref_size 2.
        assert_eq!(eval(&[0x76, 0, 0x94, 2], None), Some(0x600));
        // DW_OP_plus_uconst 16, on the CFA.
        assert_eq!(eval(&[0x23, 16], Some(0x1000)), Some(0x1010));
    }

    #[test]
    fn what_cannot_be_known_or_does_not_end_fails() {
        assert_eq!(eval(&[], None), None);
        assert_eq!(eval(&[0x23, 16], None), None, "empty stack");
        assert_eq!(
            eval(&[0x2f, 0xfd, 0xff], None),
            None,
            "DW_OP_skip to itself"
        );
        assert_eq!(eval(&[0x9b], None), None, "DW_OP_form_tls_address");
        assert_eq!(eval(&[0x30; 40], None), None, "stack overflow");
    }
}
