//! Global functions: the verifier walks each once, whoever calls it, and knows nothing of its arguments but the size
//! of what they point to.

/// Declares an `extern "C"` function on pointers to fixed-size values: first those it reads, then those it changes,
/// then numbers. BTF cannot say "not null", so each pointer is compared with null; the body then sees references.
macro_rules! global_fn {
    ($(#[$doc:meta])* $vis:vis fn $name:ident(
        $($in:ident: &$in_type:ty),*; $($out:ident: &mut $out_type:ty),*; $($number:ident: $number_type:ty),*
    ) $body:block) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Every pointer is null or valid for the call; what is changed is covered by no other argument.
        #[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
        #[inline(never)]
        $vis unsafe extern "C" fn $name(
            $($in: *const $in_type,)* $($out: *mut $out_type,)* $($number: $number_type),*
        ) -> i32 {
            $(if $in.is_null() {
                return $crate::aead::NULL_POINTER;
            })*
            $(if $out.is_null() {
                return $crate::aead::NULL_POINTER;
            })*
            $(
                // SAFETY: not null; valid and not written by anyone else, by this function's contract.
                let $in: &$in_type = unsafe { &*$in };
            )*
            $(
                // SAFETY: not null; valid and unaliased, by this function's contract.
                let $out: &mut $out_type = unsafe { &mut *$out };
            )*
            $body
        }
    };
}

pub(crate) use global_fn;
