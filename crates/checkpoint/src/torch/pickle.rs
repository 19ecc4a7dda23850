//! The pickle language, without what it can do.
//!
//! A pickle is a program for a stack machine that may import and call anything. This one knows what the opcodes of protocols 1
//! to 5 leave on the stack, and what the few names in [`globals`](super::globals) would make; nothing is imported or called.
//! What another name would make is an opaque object.

use std::collections::{BTreeMap, HashMap};

use super::{
    bytes::Bytes,
    globals,
    rebuild::{self, Rebuilt},
    value::{Heap, Object, Opaque, TensorRef, Value},
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

/// What persistent ids name.
#[derive(Clone, Copy)]
pub(super) enum Persistent<'a> {
    /// Storages by what they are.
    Storages,
    /// Tensors by their numbers.
    Numbered(&'a BTreeMap<u64, TensorRef<'a>>),
}

/// Reads a pickle that is all of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Unpickled<'_>, Refusal> {
    let (unpickled, len) = read_first(bytes, Persistent::Storages)?;
    match len == bytes.len() {
        true => Ok(unpickled),
        false => Err(Refusal { at: len, why: "expected one value and the end of the file".to_owned() }),
    }
}

/// Reads the pickle at the front of `bytes`; returns its length, too.
pub(super) fn read_first<'a>(bytes: &'a [u8], persistent: Persistent<'a>) -> Result<(Unpickled<'a>, usize), Refusal> {
    let mut machine = Machine {
        bytes: Bytes::new(bytes),
        stack: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
        copied: 0,
        persistent,
    };
    let mut at = 0;
    let top = machine.run(&mut at).map_err(|why| Refusal { at, why })?;
    Ok((Unpickled { heap: machine.heap, top }, machine.bytes.at()))
}

struct Machine<'a> {
    bytes: Bytes<'a>,
    stack: Vec<Item<'a>>,
    memo: HashMap<u64, Value<'a>>,
    heap: Heap<'a>,
    /// What was copied so far from what the pickle says once: axes of tensors, items of dicts.
    copied: usize,
    persistent: Persistent<'a>,
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
        let version = match self.bytes.peek() {
            // Protocol 1 and before have no mark.
            Some(first) if first != 0x80 => 1,
            _ => self.bytes.take(2)?[1],
        };
        if !(1..=5).contains(&version) {
            return Err(format!("expected a pickle of protocol 1 to 5, found protocol {version}"));
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
        match self.stack.is_empty() {
            true => Ok(top),
            false => Err("expected one value, found more".to_owned()),
        }
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
            0x8a => self.push_long(1)?,
            0x8b => self.push_long(4)?,
            b'I' | b'L' => self.push_decimal()?,
            b'F' => {
                self.bytes.line()?;
                self.push(Value::Float);
            }
            b'G' => {
                self.bytes.take(8)?;
                self.push(Value::Float);
            }
            0x8c => self.push_text(1)?,
            b'X' => self.push_text(4)?,
            0x8d => self.push_text(8)?,
            b'V' => {
                let text = self.bytes.line()?;
                self.push(Value::Str(text));
            }
            // Strings of Python 2, which are bytes that are mostly text.
            b'U' => self.push_bytes(1, true)?,
            b'T' => self.push_bytes(4, true)?,
            b'C' => self.push_bytes(1, false)?,
            b'B' => self.push_bytes(4, false)?,
            0x8e | 0x96 => self.push_bytes(8, false)?,
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
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push_object(Object::List(items));
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push_object(Object::Dict(Vec::new()));
                self.set_items(&items)?;
            }
            0x8f => self.push_object(Object::Set),
            0x90 => self.add_items()?,
            0x91 => {
                self.pop_to_mark()?;
                self.push_object(Object::Set);
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let value = self.top()?;
                self.push(value);
            }
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
            b'p' => {
                let index = self.number()?;
                let value = self.top()?;
                self.memo.insert(index, value);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'g' => {
                let index = self.number()?;
                self.recall_as(index)?;
            }
            b'c' | 0x93 => self.push_global(opcode)?,
            b'Q' => {
                let id = self.pop()?;
                self.push_persistent(id)?;
            }
            b'P' => {
                let id = Value::Str(self.bytes.line()?);
                self.push_persistent(id)?;
            }
            // Calls and classes made: alike, as neither is.
            b'R' | 0x81 => self.reduce()?,
            0x92 => {
                self.pop()?;
                self.reduce()?;
            }
            b'i' => {
                drop(self.pop_to_mark()?);
                self.push_global(b'c')?;
                self.reduce_without_args()?;
            }
            b'o' => {
                let class = *self.pop_to_mark()?.first().ok_or("expected a class, found none")?;
                self.push(class);
                self.reduce_without_args()?;
            }
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
    fn push_long(&mut self, len: usize) -> Step<()> {
        let bytes = self.bytes.sized(len)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let fill = if negative { -1i64 } else { 0 };
        let small = bytes.len() <= 8;
        let value = bytes.iter().rev().fold(fill, |n, byte| n << 8 | i64::from(*byte));
        self.push(if small { Value::Int(value) } else { Value::BigInt(low_bits(bytes)) });
        Ok(())
    }

    /// An integer as text; `00` and `01` are bools of old protocols.
    fn push_decimal(&mut self) -> Step<()> {
        let text = self.bytes.line()?;
        let digits = text.strip_suffix('L').unwrap_or(text);
        self.push(match digits {
            "00" | "01" => Value::Bool,
            _ => digits.parse().map_or(Value::BigInt(0), Value::Int),
        });
        Ok(())
    }

    /// Bytes, of which those that are text may name something.
    fn push_bytes(&mut self, len: usize, may_be_text: bool) -> Step<()> {
        let bytes = self.bytes.sized(len)?;
        let text = if may_be_text { std::str::from_utf8(bytes).ok() } else { None };
        self.push(text.map_or(Value::Bytes, Value::Str));
        Ok(())
    }

    /// An index as text.
    fn number(&mut self) -> Step<u64> {
        let text = self.bytes.line()?;
        text.parse().map_err(|_| "expected an index, found other text".to_owned())
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
            Some(Object::Opaque(_) | Object::Set) => {}
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
            Some(Object::Opaque(_)) => {}
            _ => return Err(format!("expected a dict to set items of, found {}", self.heap.kind(dict))),
        }
        Ok(())
    }

    /// Adds to the set on the stack, of which nothing is kept.
    fn add_items(&mut self) -> Step<()> {
        self.pop_to_mark()?;
        let set = self.top()?;
        match self.heap.get(set) {
            Some(Object::Set | Object::Opaque(_)) => Ok(()),
            _ => Err(format!("expected a set to add to, found {}", self.heap.kind(set))),
        }
    }

    fn memoize(&mut self, len: usize) -> Step<()> {
        let index = self.bytes.uint(len)?;
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, len: usize) -> Step<()> {
        let index = self.bytes.uint(len)?;
        self.recall_as(index)
    }

    fn recall_as(&mut self, index: u64) -> Step<()> {
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
        self.push(Value::Global(globals::find(module, name)));
        Ok(())
    }

    fn push_persistent(&mut self, id: Value<'a>) -> Step<()> {
        let object = self.persistent(id)?;
        self.count_copied(&object)?;
        self.push_object(object);
        Ok(())
    }

    /// What a persistent id names.
    fn persistent(&self, id: Value<'a>) -> Step<Object<'a>> {
        let Persistent::Numbered(tensors) = self.persistent else { return rebuild::storage(&self.heap, id) };
        let number = match id {
            Value::Int(number) => u64::try_from(number).ok(),
            Value::BigInt(number) => Some(number),
            Value::Str(text) => text.parse().ok(),
            // A class of modules, with its source text.
            _ if self.heap.tuple(id).is_some() => return Ok(Object::Opaque(Opaque::Known("a class"))),
            _ => None,
        };
        let number = number.ok_or("expected the number of a tensor, found another persistent id")?;
        Ok(match tensors.get(&number) {
            Some(tensor) => Object::Tensor(Box::new(tensor.clone())),
            None => Object::Opaque(Opaque::Known("a storage")),
        })
    }

    /// A call of a global, which is not made: what it would return is known.
    fn reduce(&mut self) -> Step<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return match self.heap.get(function) {
                // A class that something made, or a method of it.
                Some(Object::Opaque(_)) => {
                    self.push(function);
                    Ok(())
                }
                _ => Err(format!("expected a function to call, found {}", self.heap.kind(function))),
            };
        };
        let value = match rebuild::call(&self.heap, function, args)? {
            Rebuilt::Value(value) => value,
            Rebuilt::Object(object) => {
                self.count_copied(&object)?;
                self.heap.add(object)
            }
        };
        self.push(value);
        Ok(())
    }

    /// What the class on the stack makes of arguments that do not matter.
    fn reduce_without_args(&mut self) -> Step<()> {
        self.push_object(Object::Tuple(Vec::new()));
        let (args, class) = (self.pop()?, self.pop()?);
        let object = match class {
            Value::Global(class) => match rebuild::call(&self.heap, class, args)? {
                Rebuilt::Value(value) => {
                    self.push(value);
                    return Ok(());
                }
                Rebuilt::Object(object) => object,
            },
            _ => Object::Opaque(Opaque::Known("an object")),
        };
        self.push_object(object);
        Ok(())
    }

    /// Refuses tensors and dicts that share what they are made of so often that the memory for them is out of proportion to
    /// the pickle: PyTorch writes out each size.
    fn count_copied(&mut self, object: &Object<'a>) -> Step<()> {
        self.copied += match object {
            Object::Tensor(tensor) => tensor.view.shape.len(),
            Object::Dict(items) => items.len(),
            _ => 0,
        };
        match self.copied <= self.bytes.len() {
            true => Ok(()),
            false => Err(format!("its tensors have more axes in all than its {} bytes describe", self.bytes.len())),
        }
    }

    /// Sets attributes of an object, of which none is kept: modules hang `_metadata` on their state dicts, and tensors have
    /// attributes.
    fn build(&mut self) -> Step<()> {
        let (_, object) = (self.pop()?, self.top()?);
        match self.heap.get(object) {
            Some(Object::Dict(_) | Object::Set | Object::List(_) | Object::Opaque(_) | Object::Tensor(_)) => Ok(()),
            _ => Err(format!("{} with attributes is not part of a state dict", self.heap.kind(object))),
        }
    }
}

/// The lowest bits of an integer.
fn low_bits(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// The name that Python's documentation gives the opcode, for those that cannot be read.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        0x82..=0x84 => "EXT",
        0x97 | 0x98 => "BUFFER",
        b'S' => "STRING",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}
