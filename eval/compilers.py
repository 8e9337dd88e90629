"""What all that calls compilers shares: their limits and flags."""

from .sandbox import Limits

# On a busy machine a compiler waits: at a load of 16 the precompiled C++ header took more than 60 s of wall time. It has 100 MB.
COMPILING = Limits(wall_s=300, cpu_s=60, memory_mib=2048, file_mib=512)
# A JVM takes its memory limit from -Xmx; one thread of the simple collector and the first compiler start fastest.
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData")
JAVAC = ("javac", *(f"-J{flag}" for flag in JVM), "-proc:none", "-nowarn", "-encoding", "UTF-8")
GCC = ("g++", "-std=c++17", "-w")
