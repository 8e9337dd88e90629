// What follows is compiled for the instructions that MOE_TARGET names, whatever the flags of the command line; MSVC needs no leave.
#define MOE_PRAGMA_TEXT(...) _Pragma(#__VA_ARGS__)
#define MOE_PRAGMA(...) MOE_PRAGMA_TEXT(__VA_ARGS__)
#if defined(__clang__)
MOE_PRAGMA(clang attribute push(__attribute__((target(MOE_TARGET))), apply_to = function))
#elif defined(__GNUC__)
MOE_PRAGMA(GCC push_options)
MOE_PRAGMA(GCC target(MOE_TARGET))
#endif
