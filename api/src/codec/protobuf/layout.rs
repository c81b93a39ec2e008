//! Which field has which number: the embedded messages that JSON has flattened are put back together here.

use crate::schema::Struct;

/// The fields of one message by number.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// In ascending order of the numbers, which is the order of encoding.
    pub(super) slots: Vec<(u32, Slot)>,
}

#[derive(Debug)]
pub(super) enum Slot {
    /// The position of a field in the struct.
    Field(usize),
    /// An embedded message, whose fields the tree has in the outer struct.
    Embedded(Layout),
}

impl Layout {
    pub(crate) fn of(schema: &Struct) -> Self {
        let mut layout = Layout::default();
        for (i, field) in schema.fields.iter().enumerate() {
            let Some(proto) = field.proto else { continue };
            let mut at = &mut layout;
            for number in proto.via.into_iter().filter(|&n| n != 0) {
                at = at.embedded(number);
            }
            at.slots.push((proto.number, Slot::Field(i)));
        }
        layout.sort();
        layout
    }

    fn embedded(&mut self, number: u32) -> &mut Layout {
        let found = self.slots.iter().position(|(n, slot)| *n == number && matches!(slot, Slot::Embedded(_)));
        let i = found.unwrap_or_else(|| {
            self.slots.push((number, Slot::Embedded(Layout::default())));
            self.slots.len() - 1
        });
        match &mut self.slots[i].1 {
            Slot::Embedded(layout) => layout,
            Slot::Field(_) => unreachable!("the position is that of an embedded message"),
        }
    }

    fn sort(&mut self) {
        self.slots.sort_by_key(|(number, _)| *number);
        for (_, slot) in &mut self.slots {
            if let Slot::Embedded(layout) = slot {
                layout.sort();
            }
        }
    }

    pub(super) fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.binary_search_by_key(&number, |(n, _)| *n).ok().map(|i| &self.slots[i].1)
    }
}
