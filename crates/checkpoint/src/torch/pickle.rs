//! The part of the pickle language that state dicts are written in.
//!
//! A pickle is a program for a stack machine that may import and call anything. This one knows the opcodes that
//! protocols 2 to 5 use for plain values and containers, and the few names in [`globals`](super::globals), which it
//! never calls. Everything else is refused.

use std::collections::HashMap;

use super::{
    bytes::Bytes,
    globals,
    rebuild::{self, Rebuilt},
    value::{Heap, Object, Value},
};

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Unpickled<'a> {
    pub(super) heap: Heap<'a>,
    pub(super) top: Value<'a>,
}

/// Why a pickle was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The byte at which the opcode stands.
    pub(super) at: usize,
    pub(super) why: String,
}

/// Reads a pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Unpickled<'_>, Refusal> {
    let mut machine =
        Machine { bytes: Bytes::new(bytes), stack: Vec::new(), memo: HashMap::new(), heap: Heap::default(), axes: 0 };
    let mut at = 0;
    let top = machine.run(&mut at).map_err(|why| Refusal { at, why })?;
    Ok(Unpickled { heap: machine.heap, top })
}

struct Machine<'a> {
    bytes: Bytes<'a>,
    stack: Vec<Item<'a>>,
    memo: HashMap<u64, Value<'a>>,
    heap: Heap<'a>,
    /// The axes of all tensors so far.
    axes: usize,
}

#[derive(Clone, Copy)]
enum Item<'a> {
    Mark,
    Value(Value<'a>),
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs the whole program; `at` is the place of the current opcode.
    fn run(&mut self, at: &mut usize) -> Step<Value<'a>> {
        let version = match self.bytes.take(2)? {
            [0x80, version] => *version,
            other => return Err(format!("expected a pickle of protocol 2 to 5, found the bytes {other:02x?}")),
        };
        if !(2..=5).contains(&version) {
            return Err(format!("expected a pickle of protocol 2 to 5, found protocol {version}"));
        }
        loop {
            *at = self.bytes.at();
            let opcode = self.bytes.uint(1)? as u8;
            if opcode == b'.' {
                break;
            }
            self.step(opcode)?;
        }
        let top = self.pop()?;
        if !self.stack.is_empty() || !self.bytes.is_at_end() {
            return Err("expected one value and the end of the file".to_owned());
        }
        Ok(top)
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'K' => self.push_uint(1)?,
            b'M' => self.push_uint(2)?,
            b'J' => {
                let bits = self.bytes.uint(4)? as u32;
                self.push(Value::Int(i64::from(bits as i32)));
            }
            0x8a => self.push_long()?,
            b'G' => {
                self.bytes.take(8)?;
                self.push(Value::Float);
            }
            0x8c => self.push_text(1)?,
            b'X' => self.push_text(4)?,
            0x8d => self.push_text(8)?,
            b')' => self.push_object(Object::Tuple(Vec::new())),
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_object(Object::Tuple(items));
            }
            b']' => self.push_object(Object::List(Vec::new())),
            b'}' => self.push_object(Object::Dict(Vec::new())),
            b'(' => self.stack.push(Item::Mark),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            // A frame says how many bytes the writer wrote at once.
            0x95 => drop(self.bytes.take(8)?),
            b'q' => self.memoize(1)?,
            b'r' => self.memoize(4)?,
            0x94 => {
                let value = self.top()?;
                self.memo.insert(self.memo.len() as u64, value);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' | 0x93 => self.push_global(opcode)?,
            b'Q' => {
                let id = self.pop()?;
                let storage = rebuild::storage(&self.heap, id)?;
                self.push_object(Object::Storage(storage));
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Err(format!("the opcode {} is not part of a state dict", opcode_name(opcode))),
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(Item::Value(value));
    }

    fn push_object(&mut self, object: Object<'a>) {
        let value = self.heap.add(object);
        self.push(value);
    }

    fn push_uint(&mut self, len: usize) -> Step<()> {
        let value = self.bytes.uint(len)? as i64;
        self.push(Value::Int(value));
        Ok(())
    }

    /// An integer in as few bytes as hold it, the sign in the highest bit.
    fn push_long(&mut self) -> Step<()> {
        let bytes = self.bytes.sized(1)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let fill = if negative { -1i64 } else { 0 };
        let small = bytes.len() <= 8;
        let value = bytes.iter().rev().fold(fill, |n, byte| n << 8 | i64::from(*byte));
        self.push(if small { Value::Int(value) } else { Value::BigInt });
        Ok(())
    }

    fn push_text(&mut self, len: usize) -> Step<()> {
        let text = self.bytes.text(len)?;
        self.push(Value::Str(text));
        Ok(())
    }

    fn push_tuple(&mut self, len: usize) -> Step<()> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
        items.reverse();
        self.push_object(Object::Tuple(items));
        Ok(())
    }

    fn top(&self) -> Step<Value<'a>> {
        match self.stack.last() {
            Some(Item::Value(value)) => Ok(*value),
            Some(Item::Mark) | None => Err("expected a value on the stack, found none".to_owned()),
        }
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    /// The values above the last mark, which goes too.
    fn pop_to_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let mark =
            self.stack.iter().rposition(|item| matches!(item, Item::Mark)).ok_or("expected a mark, found none")?;
        let values = self.stack.drain(mark..).filter_map(|item| match item {
            Item::Value(value) => Some(value),
            Item::Mark => None,
        });
        Ok(values.collect())
    }

    /// Appends to the list on the stack.
    fn append(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        let list = self.top()?;
        match self.heap.get_mut(list) {
            Some(Object::List(list)) => list.extend(items),
            _ => return Err(format!("expected a list to append to, found {}", self.heap.kind(list))),
        }
        Ok(())
    }

    /// Sets keys, each followed by its value, of the dict on the stack.
    fn set_items(&mut self, items: &[Value<'a>]) -> Step<()> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.heap.get_mut(dict) {
            Some(Object::Dict(dict)) if rest.is_empty() => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Some(Object::Dict(_)) => return Err("a key of a dict has no value".to_owned()),
            _ => return Err(format!("expected a dict to set items of, found {}", self.heap.kind(dict))),
        }
        Ok(())
    }

    fn memoize(&mut self, len: usize) -> Step<()> {
        let index = self.bytes.uint(len)?;
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, len: usize) -> Step<()> {
        let index = self.bytes.uint(len)?;
        let value = self.memo.get(&index).ok_or_else(|| format!("nothing was memoized as {index}"))?;
        self.push(*value);
        Ok(())
    }

    fn push_global(&mut self, opcode: u8) -> Step<()> {
        let (module, name) = if opcode == b'c' {
            (self.bytes.line()?, self.bytes.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => (module, name),
                _ => return Err("expected the name of a global, found something else".to_owned()),
            }
        };
        let refused = || format!("it names `{module}.{name}`, which is not part of a state dict and is not executed");
        let global = globals::find(module, name).ok_or_else(refused)?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// A call of a global, which is not made: what it would return is known.
    fn reduce(&mut self) -> Step<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Err(format!("expected a function to call, found {}", self.heap.kind(function)));
        };
        let value = match rebuild::call(&self.heap, function, args)? {
            Rebuilt::Value(value) => value,
            Rebuilt::Object(object) => {
                self.count_axes(&object)?;
                self.heap.add(object)
            }
        };
        self.push(value);
        Ok(())
    }

    /// Refuses tensors that share their sizes so often that the memory for them is out of proportion to the pickle: PyTorch
    /// writes out each size.
    fn count_axes(&mut self, object: &Object<'a>) -> Step<()> {
        if let Object::Tensor(tensor) = object {
            self.axes += tensor.view.shape.len();
        }
        match self.axes <= self.bytes.len() {
            true => Ok(()),
            false => Err(format!("its tensors have more axes in all than its {} bytes describe", self.bytes.len())),
        }
    }

    /// Sets attributes of an object. Modules hang `_metadata` on their state dicts, which holds no tensors.
    fn build(&mut self) -> Step<()> {
        let (state, object) = (self.pop()?, self.top()?);
        match (self.heap.get(object), self.heap.get(state)) {
            (Some(Object::Dict(_)), Some(Object::Dict(_))) => Ok(()),
            _ => Err(format!("{} with attributes is not part of a state dict", self.heap.kind(object))),
        }
    }
}

/// The name that Python's documentation gives the opcode, for those that are refused by design.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        b'P' => "PERSID",
        0x82..=0x84 => "EXT",
        b'B' | b'C' | 0x8e | 0x96 => "BYTES",
        0x97 | 0x98 => "BUFFER",
        0x8f..=0x91 => "SET",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}
