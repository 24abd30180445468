//! `.npy` files: what NumPy writes is read exactly, what this crate writes is what NumPy writes, and every kind of
//! damaged or foreign file gives one line of error. The files are put together here byte by byte, not by the code
//! under test.
#![cfg(all(feature = "npy", feature = "linalg"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use proptest::prelude::*;
use tensorslim::npy::{self, Array, Description, Elements, Mapped, Stream};
use tensorslim::{DType, Element, Error, MatView, Matrix};

/// Counts what this thread holds, and the most it held.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is passed on to the system's allocator as it came; the counters are plain thread-local
// cells without destructors, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is that of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is that of `System.dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `f` held at once beyond what there was before.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let out = f();
    (out, (PEAK.get() - before) as usize)
}

/// A path that no other test of this run uses.
fn path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("npy-{}-{}.npy", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A file that is removed at the end of the test.
struct Temp(PathBuf);

impl Temp {
    fn new(bytes: impl AsRef<[u8]>) -> Self {
        let temp = Temp(path());
        fs::write(&temp.0, bytes).unwrap();
        temp
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Magic, version, length, header, data.
fn npy(major: u8, header: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Vec<u8> {
    let header = header.as_ref();
    let mut file = b"\x93NUMPY".to_vec();
    file.extend([major, 0]);
    match major {
        1 => file.extend((header.len() as u16).to_le_bytes()),
        _ => file.extend((header.len() as u32).to_le_bytes()),
    }
    file.extend(header);
    file.extend(data.as_ref());
    file
}

/// Padded to a multiple of 64 and ended by a newline, as NumPy does.
fn padded(major: u8, dict: &str) -> String {
    let start = if major == 1 { 10 } else { 12 };
    let end = (start + dict.len() + 1).next_multiple_of(64);
    format!("{dict}{}\n", " ".repeat(end - start - dict.len() - 1))
}

fn dict(descr: &str, fortran: bool, shape: &str) -> String {
    let fortran = if fortran { "True" } else { "False" };
    format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}")
}

fn little(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

const SIX: [f32; 6] = [1.5, -2.0, 3.25, 4.0, 5.0, -0.0];

/// The error of reading these bytes: about that file, on one line, with this in it.
#[track_caller]
fn refused(bytes: &[u8], fragment: &str) -> String {
    let temp = Temp::new(bytes);
    refused_path(&temp.0, fragment)
}

#[track_caller]
fn refused_path(path: &Path, fragment: &str) -> String {
    let (result, peak) = peak(|| Array::read(path));
    let error = result.expect_err("a file that must be refused");
    let text = error.to_string();
    assert!(matches!(&error, Error::File { path: p, .. } if *p == path.display().to_string()), "{error:?}");
    assert!(text.contains(fragment), "{fragment:?} is not in {text:?}");
    assert_eq!(text.lines().count(), 1, "{text:?}");
    assert!(text.len() < 600 + path.display().to_string().len(), "{text:?}");
    // The parser's tree of the longest header allowed takes the most: about 100 bytes for each of 10 000 characters.
    assert!(peak < 4 << 20, "{peak} bytes held to refuse {text:?}");
    text
}

fn f32s(view: MatView<'_>) -> Vec<Vec<f32>> {
    let MatView::F32(a) = view else { panic!("{view:?}") };
    (0..a.nrows()).map(|i| (0..a.ncols()).map(|j| a[(i, j)]).collect()).collect()
}

#[test]
fn every_version_order_and_byte_order() {
    let rows = vec![vec![1.5, -2.0, 3.25], vec![4.0, 5.0, -0.0]];
    let by_column: Vec<f32> = [0, 3, 1, 4, 2, 5].map(|i| SIX[i]).to_vec();
    for major in [1, 2, 3] {
        for (fortran, values) in [(false, SIX.to_vec()), (true, by_column.clone())] {
            for big in [false, true] {
                let mut data = little(&values);
                if big {
                    data = values.iter().flat_map(|x| x.to_be_bytes()).collect();
                }
                let header = padded(major, &dict(if big { ">f4" } else { "<f4" }, fortran, "(2, 3)"));
                let temp = Temp::new(npy(major, header, data));
                let a = Array::read(&temp.0).unwrap();
                assert_eq!((a.dtype(), a.shape(), a.is_fortran()), (DType::F32, &[2, 3][..], fortran));
                assert_eq!(a.bytes().as_ptr() as usize % 64, 0);
                let t = a.tensor().unwrap();
                assert_eq!(t.strides(), if fortran { [1, 2] } else { [3, 1] });
                assert_eq!(f32s(t.view().unwrap()), rows);
            }
        }
    }
}

#[test]
fn every_element_type() {
    fn check<E: Element>(descr: &str, to_bytes: impl Fn(f64) -> Vec<u8>) {
        // Exact in every type, bfloat16 with its 8 bits too.
        let values = [0.0, 1.0, -1.5, 0.0078125, 192.0, -96.0];
        let data: Vec<u8> = values.iter().flat_map(|&x| to_bytes(x)).collect();
        let temp = Temp::new(npy(1, padded(1, &dict(descr, false, "(6,)")), &data));
        let a = Array::read_as(&temp.0, E::DTYPE).unwrap();
        assert_eq!((a.dtype(), a.shape()), (E::DTYPE, &[6][..]));
        let got: Vec<f64> = bytemuck::cast_slice::<u8, E>(a.bytes()).iter().map(|x| x.to_f64()).collect();
        assert_eq!(got, values, "{descr}");
        if descr[1..].starts_with('f') {
            assert_eq!(Array::read(&temp.0).unwrap().bytes(), a.bytes());
        }
    }
    check::<f16>("<f2", |x| f16::from_f64(x).to_le_bytes().to_vec());
    check::<f16>(">f2", |x| f16::from_f64(x).to_be_bytes().to_vec());
    check::<f32>("<f4", |x| (x as f32).to_le_bytes().to_vec());
    check::<f64>("<f8", |x| x.to_le_bytes().to_vec());
    check::<f64>(">f8", |x| x.to_be_bytes().to_vec());
    for little in ["<V2", "<u2", "<i2", "<bfloat16"] {
        check::<bf16>(little, |x| bf16::from_f64(x).to_le_bytes().to_vec());
    }
    for big in [">u2", ">i2", ">bfloat16"] {
        check::<bf16>(big, |x| bf16::from_f64(x).to_be_bytes().to_vec());
    }
    // Without a byte order it is the machine's.
    for native in ["|V2", "bfloat16", "=bfloat16"] {
        check::<bf16>(native, |x| bf16::from_f64(x).to_ne_bytes().to_vec());
    }
}

/// Some programs write the name that NumPy does not know: a file that names its type needs nobody to say it again.
#[test]
fn a_file_that_names_bfloat16_needs_no_hint() {
    let bytes: Vec<u8> = SIX.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect();
    for header in [
        "{'descr': 'bfloat16', 'fortran_order': False, 'shape': (2, 3), }",
        "{\"shape\": (2L, 3L), \"fortran_order\": False, \"descr\" : \"bfloat16\"}",
    ] {
        let temp = Temp::new(npy(1, padded(1, header), &bytes));
        for array in [Array::read(&temp.0).unwrap(), Array::read_as(&temp.0, DType::BF16).unwrap()] {
            assert_eq!((array.dtype(), array.shape(), array.bytes()), (DType::BF16, &[2, 3][..], &bytes[..]));
        }
        let mapped = Mapped::open(&temp.0, None).unwrap();
        assert_eq!((mapped.dtype(), mapped.shape()), (DType::BF16, &[2, 3][..]));
        let text = Array::read_as(&temp.0, DType::F16).unwrap_err().to_string();
        assert!(text.contains("bfloat16") && text.contains("not f16"), "{text}");
    }
}

/// What a file holds is told for every type and any number of axes, and a file of the wrong length is an error for all of them.
#[test]
fn every_type_is_described_and_wrong_lengths_are_refused() {
    for (descr, elements, size) in [
        ("<f2", Elements::Floats(DType::F16), 2),
        (">f4", Elements::Floats(DType::F32), 4),
        ("<f8", Elements::Floats(DType::F64), 8),
        ("bfloat16", Elements::Floats(DType::BF16), 2),
        ("<f1", Elements::OtherFloats, 1),
        ("float8_e4m3fn", Elements::OtherFloats, 1),
        ("<f16", Elements::OtherFloats, 16),
        ("<V2", Elements::Untyped(2), 2),
        ("|V1", Elements::Untyped(1), 1),
        ("<i2", Elements::Integers(2), 2),
        ("|u1", Elements::Integers(1), 1),
        ("<i8", Elements::Integers(8), 8),
        ("|b1", Elements::Other, 1),
        ("<c8", Elements::Other, 8),
        ("<U3", Elements::Other, 12),
        ("<M8[ns]", Elements::Other, 8),
    ] {
        for (shape, count) in [("()", 1), ("(0,)", 0), ("(3,)", 3), ("(2, 3)", 6), ("(2, 0, 3)", 0)] {
            let file = npy(1, dict(descr, false, shape), vec![0; count * size]);
            let temp = Temp::new(&file);
            let what = Description::read(&temp.0).unwrap();
            assert_eq!((what.elements(), what.type_name()), (elements, descr), "{shape}");
            let product: usize = what.shape().iter().product();
            assert_eq!((product, what.shape().len()), (count, shape.matches(char::is_numeric).count()), "{descr}");
            assert_eq!(what.dtype(None).is_ok(), matches!(elements, Elements::Floats(_)), "{descr}");
            let longer = Temp::new([&file[..], &[0; 1]].concat());
            let text = Description::read(&longer.0).unwrap_err().to_string();
            assert!(text.contains(&format!("needs {} bytes", count * size)), "{text}");
        }
    }
    let list = "{'descr': [('a', '<f4', (2,)), ('b', '|i1')], 'fortran_order': False, 'shape': (2,), }";
    let what = Description::read(&Temp::new(npy(1, list, [0; 18])).0).unwrap();
    assert_eq!((what.elements(), what.type_name(), what.shape()), (Elements::Other, "structured", &[2][..]));
    assert!(Description::read(&Temp::new(npy(1, list, [0; 17])).0).is_err());
    // Of pickled objects the length is not known.
    let what = Description::read(&Temp::new(npy(1, dict("|O", false, "(7,)"), [0; 99])).0).unwrap();
    assert_eq!((what.elements(), what.shape()), (Elements::Other, &[7][..]));
}

#[test]
fn other_spellings_that_numpy_reads() {
    let temp = |header: &str| Temp::new(npy(1, header, little(&SIX)));
    for header in [
        // Without padding, newline or trailing comma; other order, quotes and spaces.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{\"shape\": (2,3), \"fortran_order\": False, \"descr\": \"<f4\"}\n",
        "{ 'shape' :\t( 2 , 3, ) , 'descr':'<f4','fortran_order':False,}  \n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (02, 3), }\n",
        // Python 2 on Windows, where the numbers of a shape are long.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }            \n",
    ] {
        assert_eq!(Array::read(&temp(header).0).unwrap().shape(), [2, 3], "{header}");
    }
    // One axis is both orders at once.
    assert!(!Array::read(&temp(&dict("<f4", true, "(6,)")).0).unwrap().is_fortran());
    assert_eq!(
        Array::read(&temp(&dict("<f4", true, "(1, 1, 6, 1)")).0).unwrap().tensor().unwrap().strides(),
        [1, 1, 1, 6]
    );
}

#[test]
fn a_conv_weight_in_fortran_order_keeps_its_elements() {
    // Element (o, i, h, w) of a 2×3×2×2 tensor is 24 distinct numbers; Fortran order: first index fastest.
    let shape = [2, 3, 2, 2];
    let value = |ix: [usize; 4]| (ix[0] * 1000 + ix[1] * 100 + ix[2] * 10 + ix[3]) as f32;
    let mut values = Vec::new();
    for w in 0..2 {
        for h in 0..2 {
            for i in 0..3 {
                values.extend((0..2).map(|o| value([o, i, h, w])));
            }
        }
    }
    let temp = Temp::new(npy(1, dict("<f4", true, "(2, 3, 2, 2)"), little(&values)));
    let a = Array::read(&temp.0).unwrap();
    let t = a.tensor().unwrap();
    assert_eq!((t.shape(), t.strides()), (&shape[..], &[1, 2, 6, 12][..]));
    for o in 0..2 {
        for i in 0..3 {
            for h in 0..2 {
                for w in 0..2 {
                    let at: usize = [o, i, h, w].iter().zip(t.strides()).map(|(&x, &s)| x * s as usize).sum();
                    assert_eq!(bytemuck::cast_slice::<u8, f32>(a.bytes())[at], value([o, i, h, w]));
                }
            }
        }
    }
    // No two strides make a matrix of that. In C order one stride does, and element (o, i, h, w) is where it is there.
    assert!(matches!(t.matricize(1), Err(Error::Layout { .. })));
    let text = Stream::open(&temp.0, None).unwrap_err().to_string();
    assert!(text.contains("(2, 3, 2, 2) in Fortran order") && text.contains("save it in C order"), "{text}");
    let c = Array::read_c_order(&temp.0, None).unwrap();
    assert!(!c.is_fortran() && (c.bytes().as_ptr() as usize).is_multiple_of(64));
    let want: Vec<f32> = (0..24).map(|at| value([at / 12, at / 4 % 3, at / 2 % 2, at % 2])).collect();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(c.bytes()), want);
    assert_eq!(c.tensor().unwrap().matricize(1).unwrap().strides(), [12, 1]);
}

/// What is written to a file after it was opened shows at the end of the pass, whichever way it is cut.
#[test]
fn a_stream_of_a_file_that_changes_is_an_error() {
    use tensorslim::operator::RowSource;
    let temp = Temp(path());
    npy::write(&temp.0, DType::F32, &[4, 3], &[0; 48]).unwrap();
    let later = |n| {
        let file = fs::File::options().write(true).open(&temp.0).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n)).unwrap();
    };
    let changed = |read: tensorslim::Result<()>| {
        assert!(read.unwrap_err().to_string().contains("was changed while it was read"));
    };
    let mut stream = Stream::open(&temp.0, None).unwrap();
    stream.read_rows(0, &mut [0; 48]).unwrap();
    stream.read_rows(0, &mut [0; 24]).unwrap();
    later(1);
    stream.read_rows(0, &mut [0; 24]).unwrap();
    changed(stream.read_rows(2, &mut [0; 24]));
    let mut stream = Stream::open(&temp.0, None).unwrap();
    later(2);
    stream.read_block(0..2, &mut [0; 32]).unwrap();
    changed(stream.read_block(2..3, &mut [0; 16]));
}

/// More than one block, of two bytes each in the other byte order, with an axis of one and a length that no block divides; the memory is
/// that of the array and one block.
#[test]
fn other_orders_come_out_in_c_order_in_blocks() {
    let shape = [37, 1, 113, 211];
    let count: usize = shape.iter().product();
    let value = |o: usize, i: usize, j: usize| ((o * 113 + i) * 211 + j) as u16;
    let mut bytes = Vec::with_capacity(2 * count);
    for j in 0..211 {
        for i in 0..113 {
            bytes.extend((0..37).flat_map(|o| value(o, i, j).to_be_bytes()));
        }
    }
    let temp = Temp::new(npy(1, dict(">u2", true, "(37, 1, 113, 211)"), &bytes));
    let (array, held) = peak(|| Array::read_c_order(&temp.0, Some(DType::BF16)).unwrap());
    assert!(held < 2 * count + (1 << 20) + 16_384, "{held} bytes for {}", 2 * count);
    assert_eq!((array.dtype(), array.shape()), (DType::BF16, &shape[..]));
    let want: Vec<u16> = (0..count).map(|at| at as u16).collect();
    assert!(bytemuck::cast_slice::<u8, u16>(array.bytes()) == want);
    // C order comes out as it is.
    let temp = Temp::new(npy(1, dict("<f4", false, "(1, 2, 3)"), little(&SIX)));
    assert_eq!(Array::read_c_order(&temp.0, None).unwrap().bytes(), little(&SIX));
}

#[test]
fn a_real_file_is_read_and_written_to_the_byte() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ffn_up.npy");
    let original = fs::read(&data).unwrap();
    let (a, held) = peak(|| Array::read(&data).unwrap());
    assert_eq!((a.dtype(), a.shape(), a.is_fortran()), (DType::F16, &[1536, 384][..], false));
    // The elements, their alignment, and small change: no second copy and no vector of values.
    assert!(held < original.len() + 16_384, "{held} bytes for a file of {}", original.len());
    assert_eq!(a.bytes(), &original[128..]);
    let temp = Temp(path());
    let ((), held) = peak(|| npy::write(&temp.0, DType::F16, a.shape(), a.bytes()).unwrap());
    assert!(held < 16_384, "{held} bytes to write");
    // The file was written by NumPy: same header, same padding.
    assert!(fs::read(&temp.0).unwrap() == original);
}

#[test]
fn what_is_written_is_what_numpy_writes() {
    let native = if cfg!(target_endian = "little") { '<' } else { '>' };
    let m = Matrix::from_vec(SIX.to_vec(), 2, 3).unwrap();
    for (dtype, descr) in [(DType::F16, "f2"), (DType::BF16, "V2"), (DType::F32, "f4"), (DType::F64, "f8")] {
        let temp = Temp(path());
        npy::write_matrix(&temp.0, &m, dtype).unwrap();
        let header = padded(1, &dict(&format!("{native}{descr}"), false, "(2, 3)"));
        assert_eq!(fs::read(&temp.0).unwrap(), npy(1, header, m.to_bytes(dtype)), "{dtype}");
        assert_eq!(Array::read_as(&temp.0, dtype).unwrap().bytes(), m.to_bytes(dtype));
    }
    let temp = Temp(path());
    npy::write(&temp.0, DType::F32, &[6], bytemuck::cast_slice(&SIX)).unwrap();
    let header = padded(1, &dict(&format!("{native}f4"), false, "(6,)"));
    assert!(fs::read(&temp.0).unwrap().starts_with(&npy(1, header, [])));
    // A shorter array over a longer one.
    npy::write(&temp.0, DType::F32, &[1], bytemuck::bytes_of(&SIX[0])).unwrap();
    assert_eq!(Array::read(&temp.0).unwrap().shape(), [1]);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let temp = Temp(path());
    for (shape, bytes) in [(&[2, 3][..], 23), (&[2, 3], 25), (&[usize::MAX, 2], 24), (&[], 0)] {
        let error = npy::write(&temp.0, DType::F32, shape, &vec![0; bytes]).unwrap_err();
        assert!(matches!(error, Error::Shape { op: "npy::write", .. }), "{error:?}");
    }
    assert!(!temp.0.exists());
    for path in [Path::new("/nonexistent/x.npy"), Path::new(env!("CARGO_TARGET_TMPDIR"))] {
        let error = npy::write(path, DType::F32, &[1], &[0; 4]).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error:?}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn paths_that_are_no_files_are_refused() {
    refused_path(&path(), "cannot be read: No such file");
    refused_path(Path::new(env!("CARGO_TARGET_TMPDIR")), "is a directory");
    refused_path(Path::new(""), "cannot be read");
    #[cfg(unix)]
    refused_path(Path::new("/dev/zero"), "is no regular file");
}

#[test]
fn other_files_are_refused() {
    refused(b"", "is empty");
    refused(b"\x93", "is no .npy file");
    refused(b"hello, world, this is text", "is no .npy file");
    refused(b"PK\x03\x04 and so on, an archive", "archive (.npz, PyTorch)");
    refused(b"\x93NUMPX\x01\x00v\x00{'descr': ", "is no .npy file");
    for (major, minor) in [(0, 0), (4, 0), (1, 1), (255, 255)] {
        let mut file = npy(1, dict("<f4", false, "(6,)"), little(&SIX));
        (file[6], file[7]) = (major, minor);
        refused(&file, &format!("has version {major}.{minor}"));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for major in [1, 2, 3] {
        let file = npy(major, padded(major, &dict("<f4", false, "(2, 3)")), little(&SIX));
        assert!(Array::read(&Temp::new(&file).0).is_ok());
        for len in 0..file.len() {
            let text = refused(&file[..len], "");
            if len > file.len() - 24 {
                assert!(text.contains("cut short"), "{len}: {text}");
            }
        }
    }
}

#[test]
fn trailing_bytes_are_refused() {
    let mut file = npy(1, dict("<f4", false, "(2, 3)"), little(&SIX));
    file.push(0);
    refused(&file, "needs 24 bytes for shape (2, 3) of f32 and has 25 after its header");
    // numpy.save twice into one file object.
    let one = npy(1, padded(1, &dict("<f4", false, "(2, 3)")), little(&SIX));
    refused(&[&one[..], &one[..]].concat(), "save one array to one file");
}

#[test]
fn a_header_length_that_lies_is_refused() {
    let file = npy(2, padded(2, &dict("<f4", false, "(2, 3)")), little(&SIX));
    for size in [0u32, 1, 10, 60, file.len() as u32, 9_999, 10_001, 0x7fff_ffff, u32::MAX] {
        let mut lying = file.clone();
        lying[8..12].copy_from_slice(&size.to_le_bytes());
        refused(&lying, "header");
    }
    // A real one of 4 GiB and one just over the limit: refused from the length alone.
    let long = dict("<f4", false, "(2, 3)") + &" ".repeat(10_000);
    refused(&npy(2, &long, little(&SIX)), "a header is at most 10000");
    let limit = &long[..10_000];
    assert!(Array::read(&Temp::new(npy(2, limit, little(&SIX))).0).is_ok());
    assert!(Array::read(&Temp::new(npy(1, limit, little(&SIX))).0).is_ok());
}

#[test]
fn garbage_headers_are_refused() {
    for header in [
        "",
        "\n",
        "garbage",
        "{",
        "}",
        "{}",
        "[]",
        "'<f4'",
        "()",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'shape': (2, 3)}",
        "{'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ('2', 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} extra",
        "{'descr': '<f4, 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), '",
        "{'descr': 4, 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': 'f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '|f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f99999999999999999999', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 1: 2}",
        "{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'''descr''': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{b'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0x2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1+1, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2LL, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (L2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2 L, 3)}",
        "{'descr': 'bfloat17', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': 'f1', 'fortran_order': False, 'shape': (2, 3)}",
        "{'bfloat16': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "\0\0\0\0",
    ] {
        let text = refused(&npy(1, header, little(&SIX)), "has a damaged header");
        assert!(text.ends_with("save the array again with numpy.save"), "{text}");
    }
}

#[test]
fn unicode_in_the_header_does_no_harm() {
    let field = |major, name: &[u8]| {
        let header = [b"{'descr': [('", name, b"', '<f4')], 'fortran_order': False, 'shape': (2, 3), }"].concat();
        npy(major, header, little(&SIX))
    };
    refused(&field(3, "größe 行列 🦀".as_bytes()), "structured elements");
    // Version 1 is Latin-1, which need not be valid UTF-8.
    refused(&field(1, b"gr\xf6\xdfe"), "damaged header");
    refused(&field(3, b"gr\xf6\xdfe"), "damaged header");
    refused(&npy(3, "{'descr': 'é', 'fortran_order': False, 'shape': (2, 3), }", little(&SIX)), "damaged header");
    refused(&npy(3, "{'descr': '<f4', 'fortran_order': False, 'shape': (２, ３), }", little(&SIX)), "damaged header");
    refused(&npy(3, "\u{feff}{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", little(&SIX)), "damaged");
}

#[test]
fn shapes_that_are_too_large_are_refused() {
    let shape = |shape: &str| npy(1, dict("<f4", false, shape), little(&SIX));
    // Larger than the file.
    refused(&shape("(2, 4)"), "needs 32 bytes for shape (2, 4) of f32 and has 24");
    refused(&shape("(1000000000, 1000000)"), "needs 4000000000000000 bytes");
    refused(&shape("(2305843009213693951,)"), "needs 9223372036854775804 bytes");
    // More bytes than addresses, more elements than 2^63, and dimensions over 2^64; products that wrap to 6 or 0.
    refused(&shape("(2305843009213693952,)"), "more bytes than there are addresses");
    refused(&shape("(4294967296, 2147483648)"), "more than 2^63 elements");
    refused(&shape("(4294967296, 4294967296)"), "more than 2^63 elements");
    refused(&shape("(18446744073709551615, 18446744073709551610)"), "more than 2^63 elements");
    refused(&shape("(18446744073709551622,)"), "more than 2^63 elements");
    refused(&shape(&format!("({},)", "9".repeat(9_000))), "more than 2^63 elements");
    refused(&shape(&format!("({})", "2, ".repeat(3_000))), "more than 2^63 elements");
    // Many axes of one.
    refused(&shape(&format!("(6, {})", "1, ".repeat(64))), "has 65 axes");
    assert_eq!(Array::read(&Temp::new(shape(&format!("(6, {})", "1, ".repeat(63)))).0).unwrap().shape().len(), 64);
}

#[test]
fn shapes_without_elements() {
    for shape in ["()", "[]", "(0,)", "(0, 3)", "(3, 0)", "(0, 9000000000000000000)"] {
        let data: &[u8] = if shape.len() == 2 { &[0; 4] } else { &[] };
        let text = refused(&npy(1, dict("<f4", false, shape), data), "holds no matrix");
        assert!(text.contains(&shape.replace('[', "(").replace(']', ")")), "{text}");
    }
}

#[test]
fn element_types_that_are_not_taken_are_named() {
    let file = |descr: &str| npy(1, dict(descr, false, "(1,)"), [0; 32]);
    for descr in ["|b1", "|i1", "|u1", "<i2", "<i4", ">i8", "<u2", "<u4", "<f16", "<M8[ns]", "|S7", "<U3"] {
        refused(&file(descr), &format!("holds elements of type '{descr}'; convert it to f16, f32 or f64"));
    }
    for descr in ["<c8", "<c16"] {
        refused(&file(descr), &format!("holds complex elements ('{descr}'), and factors are real"));
    }
    refused(&file("|O"), "pickled Python objects");
    refused(&file("<V2"), "if they are bfloat16, say so");
    refused(&file("|V2"), "if they are bfloat16, say so");
    refused(&file("|V3"), "elements of type '|V3'");
    // Types of the machine-learning world are named, with what to do; such a file is not damaged.
    for (descr, name) in [
        ("<f1", "float8 ('<f1')"),
        ("|f1", "float8 ('|f1')"),
        ("|V1", "one-byte elements without a type ('|V1')"),
        ("<V1", "one-byte elements without a type ('<V1')"),
        ("float8_e5m2", "'float8_e5m2'"),
        ("float4_e2m1fn", "'float4_e2m1fn'"),
    ] {
        let text = refused(&file(descr), name);
        assert!(text.contains("as a wider type, e.g. a.astype('f4')") && !text.contains("damaged"), "{text}");
    }
    for list in ["[('a', '<f4')]", "[('a', '<f4', (2,))]", "[('a', '<f4'), ('b', '|O')]", "[]"] {
        let header = format!("{{'descr': {list}, 'fortran_order': False, 'shape': (1,), }}");
        refused(&npy(1, header, [0; 32]), "structured elements");
    }
    // A structure in a structure is beyond the depth that is parsed.
    let nested = "{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (1,), }";
    refused(&npy(1, nested, [0; 4]), "brackets deeper than 4");

    // Bits under another name: the size must be that of the type, and a type that has a name keeps it.
    for (descr, dtype) in [
        ("<f2", DType::BF16),
        ("<f4", DType::F64),
        ("<f4", DType::BF16),
        ("<V4", DType::BF16),
        ("<i4", DType::BF16),
        ("<f1", DType::BF16),
        ("|u1", DType::F16),
        ("|O", DType::F64),
    ] {
        let temp = Temp::new(file(descr));
        let text = Array::read_as(&temp.0, dtype).unwrap_err().to_string();
        assert!(text.contains(&format!("not {dtype}; convert it first")), "{descr}: {text}");
    }
}

#[test]
fn headers_made_to_bring_a_parser_down_are_refused() {
    // Each of these takes a recursive parser with backtracking 2^depth steps, or its stack.
    for c in ["(", "[", "{", "{(", "[{", "((1,),", "{1:", "[1,["] {
        refused(&npy(1, c.repeat(9_000 / c.len()), []), "brackets deeper than 4");
    }
    // As deep as is allowed, as long as is allowed, and never right.
    for open in ["((((", "[[[[", "{{{{", "{[({", "{'a':[(["] {
        for filling in ["1,", "1", "'',", "'a':1,", "True,", "(1,),", ",", ":", " ", "0,", "()", "{},"] {
            let open = &open[..open.len() - if filling.contains(['(', '{']) { 1 } else { 0 }];
            // The longest one once; the others shorter, for the sake of emulated runs.
            let len = if filling == "1," { 9_900 } else { 900 };
            let header = format!("{open}{}", filling.repeat(len / filling.len()));
            refused(&npy(1, header, []), "damaged header");
        }
    }
    // Triple quotes could make a string end in one place here and in another there.
    let hidden = "{'''1'1''':1,'a':(99999999999,99999999999),'''1'1''':1}";
    refused(&npy(1, hidden, []), "quotes that follow each other");
}

/// A valid file of few bytes, so that changes hit the header often.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let descr = prop::sample::select(vec!["<f2", ">f2", "<f4", "<f8", ">f8"]);
    (1u8..=3, descr, any::<bool>(), prop::collection::vec(1usize..5, 1..4), any::<bool>()).prop_map(
        |(major, descr, fortran, dims, pad)| {
            let bytes = dims.iter().product::<usize>() * usize::from(descr.as_bytes()[2] - b'0');
            let shape = format!("({},)", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", "));
            let dict = dict(descr, fortran, &shape);
            let header = if pad { padded(major, &dict) } else { dict };
            npy(major, header, (0..bytes).map(|i| i as u8).collect::<Vec<u8>>())
        },
    )
}

/// What headers are made of, and what breaks them.
const TOKENS: [&str; 35] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "'",
    "\"",
    "'''",
    ",",
    ":",
    " ",
    "\n",
    "\\",
    "'descr': ",
    "'fortran_order': ",
    "'shape': ",
    "'<f4'",
    "'<f2'",
    "'|O'",
    "'<V2'",
    "'bfloat16'",
    "'<f1'",
    "L",
    "True",
    "False",
    "None",
    "0",
    "1",
    "2",
    "65536",
    "4294967296",
    "18446744073709551615",
    "-",
    "é",
];

#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Drop(prop::sample::Index, usize),
    Insert(prop::sample::Index, &'static str),
    Overwrite(prop::sample::Index, &'static str),
    Repeat(prop::sample::Index, usize, usize),
    /// Sets the header's length to what is there, so that changes to the text reach the parser.
    Refit,
}

fn change() -> impl Strategy<Value = Change> {
    use Change::*;
    let at = any::<prop::sample::Index>;
    let token = || prop::sample::select(TOKENS.to_vec());
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Set(i, b)),
        (at(), 0u8..8).prop_map(|(i, b)| Flip(i, b)),
        at().prop_map(Cut),
        (at(), 1usize..20).prop_map(|(i, n)| Drop(i, n)),
        (at(), token()).prop_map(|(i, t)| Insert(i, t)),
        (at(), token()).prop_map(|(i, t)| Overwrite(i, t)),
        (at(), 1usize..20, 1usize..20).prop_map(|(i, n, k)| Repeat(i, n, k)),
        Just(Refit),
    ]
}

fn apply(file: &mut Vec<u8>, change: Change) {
    if file.is_empty() {
        return;
    }
    let len = file.len();
    match change {
        Change::Set(i, b) => file[i.index(len)] = b,
        Change::Flip(i, bit) => file[i.index(len)] ^= 1 << bit,
        Change::Cut(i) => file.truncate(i.index(len)),
        Change::Drop(i, n) => drop(file.drain(i.index(len)..(i.index(len) + n).min(len))),
        Change::Insert(i, t) => drop(file.splice(i.index(len)..i.index(len), t.bytes())),
        Change::Overwrite(i, t) => {
            let i = i.index(len);
            drop(file.splice(i..(i + t.len()).min(len), t.bytes()));
        }
        Change::Repeat(i, n, times) => {
            let i = i.index(len);
            let part = file[i..(i + n).min(len)].repeat(times);
            drop(file.splice(i..i, part));
        }
        Change::Refit => {
            let start = if file.get(6) == Some(&1) { 10 } else { 12 };
            if let Some(end) = file.iter().rposition(|&b| b == b'}').filter(|&end| end >= start) {
                file[8] = (end + 1 - start) as u8;
                file[9] = ((end + 1 - start) >> 8) as u8;
            }
        }
    }
}

/// Either a right answer, of the size of its shape, or one line; and never more memory than the file needs.
fn sound(file: &[u8]) -> Result<(), TestCaseError> {
    let temp = Temp::new(file);
    let (described, held) = peak(|| Description::read(&temp.0));
    prop_assert!(held < 4 << 20, "{} bytes held", held);
    for dtype in [None, Some(DType::BF16)] {
        let (result, held) = peak(|| match dtype {
            None => Array::read(&temp.0),
            Some(dtype) => Array::read_as(&temp.0, dtype),
        });
        prop_assert!(held < file.len() + (4 << 20), "{} bytes held", held);
        match result {
            Ok(a) => {
                prop_assert_eq!(a.bytes().len(), a.shape().iter().product::<usize>() * a.dtype().size());
                let tensor = a.tensor().unwrap();
                prop_assert_eq!(tensor.shape(), a.shape());
                prop_assert!(file.len() > a.bytes().len() + 10);
                let what = described.as_ref().unwrap();
                prop_assert_eq!((what.shape(), what.dtype(dtype).unwrap()), (a.shape(), a.dtype()));
                let c = Array::read_c_order(&temp.0, dtype).unwrap();
                prop_assert_eq!((c.is_fortran(), c.shape(), c.bytes().len()), (false, a.shape(), a.bytes().len()));
            }
            Err(e) => {
                prop_assert!(matches!(e, Error::File { .. }), "{:?}", e);
                prop_assert_eq!(e.to_string().lines().count(), 1, "{}", e);
            }
        }
    }
    Ok(())
}

/// Elements are rounded as a whole matrix is, in a small block at a time.
#[test]
fn elements_are_written_in_blocks() {
    let a = Matrix::<f32>::from_fn(300, 70, |i, j| ((i * 70 + j) as f32 * 0.37).sin());
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let (mut want, mut got) = (Vec::new(), Vec::with_capacity(1 << 18));
        npy::write_to(&mut want, dtype, &[300, 70], &a.to_bytes(dtype)).unwrap();
        let before = LIVE.get();
        PEAK.set(before);
        npy::write_elements_to(&mut got, dtype, &[300, 70], a.as_slice()).unwrap();
        assert!(PEAK.get() - before < 100_000, "{dtype}: {} bytes", PEAK.get() - before);
        assert!(want == got, "{dtype}");
        assert!(npy::write_elements_to(&mut got, dtype, &[300, 71], a.as_slice()).is_err());
    }
}

/// More axes than the first as rows.
#[test]
fn streams_of_merged_rows_give_the_same_elements() {
    use tensorslim::operator::RowSource;

    let numbers: Vec<f32> = (0..120).map(|i| i as f32).collect();
    let body: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = Temp::new(npy(1, dict("<f4", false, "(4, 5, 6)"), body.clone()));
    for (axes, rows, columns) in [(1, 4, 30), (2, 20, 6), (3, 120, 1)] {
        let mut stream = Stream::open(&file.0, None).unwrap().with_row_axes(axes).unwrap();
        assert_eq!((RowSource::shape(&stream), stream.dims()), ((rows, columns), &[4, 5, 6][..]));
        let mut row = vec![0; 4 * columns];
        stream.read_rows(rows - 1, &mut row).unwrap();
        assert_eq!(row, body[480 - 4 * columns..]);
    }
    assert!(matches!(Stream::open(&file.0, None).unwrap().with_row_axes(4), Err(Error::Shape { .. })));
    assert!(matches!(Stream::open(&file.0, None).unwrap().with_row_axes(0), Err(Error::Shape { .. })));
    let fortran = Temp::new(npy(1, dict("<f4", true, "(20, 6)"), body));
    assert!(matches!(Stream::open(&fortran.0, None).unwrap().with_row_axes(2), Err(Error::Shape { .. })));
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(6_000))]

    #[test]
    fn changed_files_are_read_or_refused(mut file in valid(), changes in prop::collection::vec(change(), 1..6)) {
        prop_assert!(Array::read(&Temp::new(&file).0).is_ok());
        for change in changes {
            apply(&mut file, change);
        }
        sound(&file)?;
    }

    #[test]
    fn headers_of_random_tokens_are_read_or_refused(major in 1u8..=3, tokens in prop::collection::vec(prop::sample::select(TOKENS.to_vec()), 0..40)) {
        sound(&npy(major, tokens.concat(), little(&SIX)))?;
    }

    #[test]
    fn shapes_of_any_numbers_are_read_or_refused(dims in prop::collection::vec(any::<u64>().prop_map(|x| x >> (x % 64)), 0..6), fortran: bool) {
        let shape = format!("({},)", dims.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
        sound(&npy(1, dict("<f4", fortran, if dims.is_empty() { "()" } else { &shape }), little(&SIX)))?;
    }
}
