//! The code that is mapped into this process: how to get from a function to its caller, and what functions are called.
//!
//! Both are read from the files themselves, with their unwind tables and symbols. Functions that were inlined are part of those they
//! were inlined into, as symbols know no other.

use crate::sampler::Sample;
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use object::elf::{PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, ReadCache, ReadRef, SymbolIndex, SymbolKind,
};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Callers that are followed. Of a deeper stack the outermost stay unknown.
const FRAMES_MAX: usize = 256;
/// Leads to what runs, whatever its path leads to now.
const SELF: &str = "/proc/self/exe";
const VDSO: &str = "[vdso]";

/// A file with code in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    pub path: String,
    /// Whether this is the program itself, which may have been replaced or removed since it began.
    pub program: bool,
    /// Where its code lies in memory.
    pub code: Range<u64>,
    /// Where in the file that code begins.
    pub offset: u64,
}

/// Everything that is mapped now. What is mapped later stays without names.
pub fn mapped() -> io::Result<Vec<Mapped>> {
    let program = fs::read_link(SELF).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let mut list = parse_maps(&fs::read_to_string("/proc/self/maps")?);
    for file in &mut list {
        file.program = file.path == program;
    }
    Ok(list)
}

fn parse_maps(text: &str) -> Vec<Mapped> {
    let line = |line: &str| {
        let mut columns = line.splitn(6, ' ');
        let (from, to) = columns.next()?.split_once('-')?;
        let executable = columns.next()?.contains('x');
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (from, to, offset) = (hex(from)?, hex(to)?, hex(columns.next()?)?);
        let path = columns.nth(2)?.trim();
        let known = path.starts_with('/') || path == VDSO;
        (executable && known).then(|| Mapped { path: path.to_owned(), program: false, code: from..to, offset })
    };
    text.lines().filter_map(line).collect()
}

impl Mapped {
    /// Runs something on the parsed file; nothing if it cannot be parsed.
    fn parsed<T>(&self, with: impl FnOnce(&dyn Elf) -> Option<T>) -> Option<T> {
        if self.path == VDSO {
            // It has no file but lies in memory as a whole.
            let mut bytes = vec![0; usize::try_from(self.code.end - self.code.start).ok()?];
            File::open("/proc/self/mem").and_then(|memory| memory.read_exact_at(&mut bytes, self.code.start)).ok()?;
            let parsed = ElfFile64::<Endianness, _>::parse(bytes.as_slice()).ok()?;
            return with(&parsed);
        }
        let path = if self.program { SELF } else { &self.path };
        let file = ReadCache::new(File::open(path).ok()?);
        let parsed = ElfFile64::<Endianness, _>::parse(&file).ok()?;
        with(&parsed)
    }

    /// What is to be added to an address in the file to get one in memory.
    fn bias(&self, file: &dyn Elf) -> Option<u64> {
        let end = self.offset + (self.code.end - self.code.start);
        // A segment begins anywhere within the first page that is mapped of it.
        let (address, offset) = file.code().into_iter().find(|(_, offset)| (self.offset..end).contains(offset))?;
        Some(self.code.start.wrapping_add(offset - self.offset).wrapping_sub(address))
    }
}

/// What is asked of a parsed file, wherever its bytes are.
trait Elf {
    /// The executable segments: their addresses, and where they begin in the file.
    fn code(&self) -> Vec<(u64, u64)>;
    fn section(&self, name: &str) -> Option<(Range<u64>, Vec<u8>)>;
    /// The functions, by address.
    fn functions(&self) -> Vec<Function>;
    fn name(&self, function: &Function) -> Option<Name>;
}

/// What a function is called: by people, and by the linker.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    pub readable: String,
    pub symbol: String,
}

/// A function's place in its file.
struct Function {
    address: u64,
    size: u64,
    symbol: SymbolIndex,
    dynamic: bool,
}

impl<'data, R: ReadRef<'data>> Elf for ElfFile64<'data, Endianness, R> {
    fn code(&self) -> Vec<(u64, u64)> {
        let endian = self.endian();
        let headers = self.elf_program_headers().iter();
        let code = headers.filter(|h| h.p_type(endian) == PT_LOAD && h.p_flags(endian) & PF_X != 0);
        code.map(|h| (h.p_vaddr(endian), h.p_offset(endian))).collect()
    }

    fn section(&self, name: &str) -> Option<(Range<u64>, Vec<u8>)> {
        let section = self.section_by_name(name)?;
        let bytes = section.data().ok()?.to_vec();
        Some((section.address()..section.address() + section.size(), bytes))
    }

    fn functions(&self) -> Vec<Function> {
        let own = self.symbols().map(|symbol| (symbol, false));
        let offered = self.dynamic_symbols().map(|symbol| (symbol, true));
        // Where everything has a symbol, those that are offered to others are among them.
        let mut list: Vec<Function> = own
            .chain(offered)
            .filter(|(symbol, _)| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .map(|(symbol, dynamic)| Function {
                address: symbol.address(),
                size: symbol.size(),
                symbol: symbol.index(),
                dynamic,
            })
            .collect();
        list.sort_by_key(|function| (function.address, function.dynamic));
        list.dedup_by_key(|function| function.address);
        list
    }

    fn name(&self, function: &Function) -> Option<Name> {
        let symbol = if function.dynamic {
            self.dynamic_symbol_table()?.symbol_by_index(function.symbol)
        } else {
            self.symbol_by_index(function.symbol)
        };
        let symbol = symbol.ok()?;
        let symbol = symbol.name().ok()?.to_owned();
        // Without the hash that tells versions of a crate apart.
        Some(Name { readable: format!("{:#}", rustc_demangle::demangle(&symbol)), symbol })
    }
}

/// Finds the callers of what was sampled.
pub struct Unwinder {
    unwinder: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

impl Unwinder {
    pub fn new(files: &[Mapped]) -> Self {
        let mut unwinder = UnwinderNative::new();
        for file in files {
            let module = file.parsed(|elf| {
                let bias = file.bias(elf)?;
                let (table_range, table) = elf.section(".eh_frame")?;
                let index = elf.section(".eh_frame_hdr");
                let sections = ExplicitModuleSectionInfo {
                    base_svma: 0,
                    text_svma: Some(file.code.start.wrapping_sub(bias)..file.code.end.wrapping_sub(bias)),
                    eh_frame_svma: Some(table_range),
                    eh_frame: Some(table),
                    eh_frame_hdr_svma: index.as_ref().map(|(range, _)| range.clone()),
                    eh_frame_hdr: index.map(|(_, bytes)| bytes),
                    ..Default::default()
                };
                Some(Module::new(file.path.clone(), file.code.clone(), bias, sections))
            });
            if let Some(module) = module {
                unwinder.add_module(module);
            }
        }
        Unwinder { unwinder, cache: CacheNative::new() }
    }

    /// The addresses of a stack, the innermost first: each within the instruction that runs or calls.
    pub fn stack(&mut self, sample: &Sample) -> Vec<u64> {
        let registers = sample.registers;
        #[cfg(target_arch = "x86_64")]
        let known = UnwindRegsNative::new(registers.instruction, registers.stack, registers.frame);
        #[cfg(target_arch = "aarch64")]
        let known = UnwindRegsNative::new(registers.link, registers.stack, registers.frame);
        let mut read = |address| sample.word(address).ok_or(());
        let mut frames = self.unwinder.iter_frames(registers.instruction, known, &mut self.cache, &mut read);
        let mut stack = Vec::with_capacity(32);
        while stack.len() < FRAMES_MAX
            && let Ok(Some(frame)) = frames.next()
        {
            stack.push(frame.address_for_lookup());
        }
        stack
    }
}

/// The names of the functions in which addresses lie; nothing for those that have none. The addresses must be sorted.
pub fn names(files: &[Mapped], addresses: &[u64]) -> Vec<Option<Name>> {
    let mut names = vec![None; addresses.len()];
    for file in files {
        let first = addresses.partition_point(|address| *address < file.code.start);
        let end = addresses.partition_point(|address| *address < file.code.end);
        if first == end {
            continue;
        }
        file.parsed(|elf| {
            let bias = file.bias(elf)?;
            let functions = elf.functions();
            for (address, name) in addresses[first..end].iter().zip(&mut names[first..end]) {
                let address = address.wrapping_sub(bias);
                let after = functions.partition_point(|function| function.address <= address);
                let function = after.checked_sub(1).and_then(|at| functions.get(at));
                // What was written in assembly may not say how long it is.
                *name = function
                    .filter(|function| function.size == 0 || address - function.address < function.size)
                    .and_then(|function| elf.name(function));
            }
            Some(())
        });
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let text = "55d0-55e0 r--p 00000000 fe:00 12  /usr/bin/x y\n\
                    55e0-55f0 r-xp 00001000 fe:00 12  /usr/bin/x y\n\
                    7f00-7f10 r-xp 00000000 00:00 0 \n\
                    7f10-7f20 rw-p 00000000 00:00 0   [stack]\n\
                    7f20-7f30 r-xp 00000000 00:00 0   [vdso]\n";
        let mapped =
            |path: &str, code: Range<u64>, offset| Mapped { path: path.to_owned(), program: false, code, offset };
        let expected = [mapped("/usr/bin/x y", 0x55e0..0x55f0, 0x1000), mapped("[vdso]", 0x7f20..0x7f30, 0)];
        assert_eq!(parse_maps(text), expected);
    }

    #[test]
    fn an_address_has_the_name_of_its_function() {
        let address = an_address_has_the_name_of_its_function as fn() as usize as u64;
        let names = names(&mapped().expect("readable"), &[1, address]);
        let name = &names[1].as_ref().expect("tests have symbols").readable;
        assert!(name.ends_with("image::tests::an_address_has_the_name_of_its_function"), "{name}");
        assert_eq!(names[0], None);
    }
}
