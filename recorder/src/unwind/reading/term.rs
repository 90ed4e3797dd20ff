//! What registers and words of the stack hold while code is read, in terms of the registers where the reading
//! began.

use std::rc::Rc;

/// Of how many terms a value may be made: whoever compares two looks at all of them.
const MAX_TERMS: u32 = 32;

/// What something holds, in terms of the registers where the reading began. `None` if nobody knows.
pub(super) type Value = Option<Rc<Term>>;

#[derive(Debug, PartialEq)]
pub(super) enum Term {
    /// A register, by DWARF's number.
    Start(u16),
    Number(i64),
    Plus(Rc<Term>, i64),
    Minus(Rc<Term>, Rc<Term>),
    /// The word of memory there.
    Load(Rc<Term>),
}

impl Term {
    /// Whether it is made of no more than `room` terms, which it takes away.
    fn fits(&self, room: &mut u32) -> bool {
        if *room == 0 {
            return false;
        }
        *room -= 1;
        match self {
            Term::Start(_) | Term::Number(_) => true,
            Term::Plus(of, _) | Term::Load(of) => of.fits(room),
            Term::Minus(a, b) => a.fits(room) && b.fits(room),
        }
    }

    /// As a register plus a number.
    pub fn place(&self) -> Option<(u16, i64)> {
        match self {
            Term::Start(register) => Some((*register, 0)),
            Term::Plus(of, offset) => match **of {
                Term::Start(register) => Some((register, *offset)),
                _ => None,
            },
            _ => None,
        }
    }

    /// As a DWARF expression.
    fn code(&self, into: &mut Vec<u8>) {
        match self {
            Term::Start(register) => {
                into.push(gimli::DW_OP_bregx.0);
                leb128(into, i64::from(*register));
                leb128(into, 0);
            }
            Term::Number(number) => {
                into.push(gimli::DW_OP_consts.0);
                leb128(into, *number);
            }
            Term::Plus(of, offset) => {
                of.code(into);
                into.push(gimli::DW_OP_consts.0);
                leb128(into, *offset);
                into.push(gimli::DW_OP_plus.0);
            }
            Term::Minus(a, b) => {
                a.code(into);
                b.code(into);
                into.push(gimli::DW_OP_minus.0);
            }
            Term::Load(of) => {
                of.code(into);
                into.push(gimli::DW_OP_deref.0);
            }
        }
    }

    pub fn expression(&self) -> Box<[u8]> {
        let mut code = Vec::new();
        self.code(&mut code);
        code.into()
    }
}

/// A signed number as DWARF writes it; one from 0 to 63 reads the same unsigned.
fn leb128(into: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0) {
            return into.push(byte);
        }
        into.push(byte | 0x80);
    }
}

pub(super) fn plus(value: &Value, offset: i64) -> Value {
    let value = value.as_ref()?;
    if offset == 0 {
        return Some(Rc::clone(value));
    }
    match &**value {
        Term::Number(number) => Some(Rc::new(Term::Number(number.wrapping_add(offset)))),
        Term::Plus(of, other) => match other.wrapping_add(offset) {
            0 => Some(Rc::clone(of)),
            sum => Some(Rc::new(Term::Plus(Rc::clone(of), sum))),
        },
        _ => bounded(Term::Plus(Rc::clone(value), offset)),
    }
}

pub(super) fn bounded(term: Term) -> Value {
    term.fits(&mut { MAX_TERMS }).then(|| Rc::new(term))
}
