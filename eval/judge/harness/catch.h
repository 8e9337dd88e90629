// The part of Catch2 that task sets use: assertions of one process, whose first failure ends the tests.
#pragma once
#include "wire.h"

namespace moe_catch {

inline std::vector<void (*)()>& cases() {
    static std::vector<void (*)()> all;
    return all;
}

struct Case {
    explicit Case(void (*body)()) { cases().push_back(body); }
};

inline void check(bool holds, const char* text) {
    if (!holds) moe_wire::finish("failed", text);
}

template <class E, class F>
bool throws(F&& body) {
    try {
        body();
    } catch (const E&) {
        return true;
    } catch (...) {
    }
    return false;
}

template <class F>
bool throws_anything(F&& body) {
    try {
        body();
    } catch (...) {
        return true;
    }
    return false;
}

inline int run() {
    static moe_wire::Verdict verdict;
    moe_wire::rethrow = true;
    try {
        for (auto body : cases()) body();
    } catch (const std::exception& error) {
        moe_wire::finish("failed", error.what());
    } catch (...) {
        moe_wire::finish("failed", "an exception");
    }
    if (cases().empty()) moe_wire::finish("broken", "there are no tests");
    return 0;
}

}  // namespace moe_catch

#define MOE_JOIN2(a, b) a##b
#define MOE_JOIN(a, b) MOE_JOIN2(a, b)
#define MOE_CASE(name)                             \
    static void name();                            \
    static moe_catch::Case MOE_JOIN(name, _)(name); \
    static void name()
#define TEST_CASE(...) MOE_CASE(MOE_JOIN(moe_case_, __LINE__))
#define REQUIRE(...) moe_catch::check(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__)
#define REQUIRE_FALSE(...) moe_catch::check(!static_cast<bool>(__VA_ARGS__), #__VA_ARGS__)
#define REQUIRE_THROWS(...) moe_catch::check(moe_catch::throws_anything([&] { static_cast<void>(__VA_ARGS__); }), #__VA_ARGS__)
#define REQUIRE_THROWS_AS(call, type) moe_catch::check(moe_catch::throws<type>([&] { static_cast<void>(call); }), #call)
#define REQUIRE_NOTHROW(...) moe_catch::check(!moe_catch::throws_anything([&] { static_cast<void>(__VA_ARGS__); }), #__VA_ARGS__)
#define CHECK REQUIRE
#define CHECK_FALSE REQUIRE_FALSE
